# bash completion for ssh-captured, written by hand.

_ssh_captured() {
    local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    # bash cuts words at = too.
    [[ $cur == = ]] && cur=''
    [[ $previous == = && $COMP_CWORD -ge 2 ]] && previous=${COMP_WORDS[COMP_CWORD - 2]}
    COMPREPLY=()
    case $previous in
    -a | --socket)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        ;;
    --state-dir)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
        ;;
    --admin-group) mapfile -t COMPREPLY < <(compgen -g -- "$cur") ;;
    --origin) mapfile -t COMPREPLY < <(compgen -W 'auto proc' -- "$cur") ;;
    *) mapfile -t COMPREPLY < <(compgen -W '-a --socket --state-dir --admin-group --release --origin --no-keeper
            -D --debug -V --version -h --help' -- "$cur") ;;
    esac
}

complete -F _ssh_captured ssh-captured
