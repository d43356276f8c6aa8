# bash completion for ssh-capture, written by hand: behind the options stands the command line of another program,
# which is completed as such.

_ssh_capture_options='--via -f --config-file -a --broker-address -l --localhost -F --fallback --allow-direct --udp
    -D --debug --backend --strict --close-sockets --pid -V --version -h --help'

# _ssh_capture_wants WORD: prints the option of WORD whose argument is the next word; fails if there is none.
_ssh_capture_wants() {
    case $1 in
    --via | --config-file | --broker-address | --udp | --debug | --backend | --pid) printf '%s' "$1" ;;
    --* | - | [!-]* | '') return 1 ;;
    esac
    # Short options may stand together; the first that takes an argument takes the rest of the word, if there is one.
    local letters=${1#-}
    while [[ $1 != --* && -n $letters ]]; do
        case $letters in
        [faD]) printf '%s' "-$letters" && return 0 ;;
        [faD]*) return 1 ;;
        esac
        letters=${letters#?}
    done
    [[ $1 == --* ]]
}

_ssh_capture() {
    local cur=${COMP_WORDS[COMP_CWORD]} line=$COMP_LINE i start=0 word='' wanted='' end=''
    COMPREPLY=()
    [[ $cur == [=:@] ]] && cur=''

    # bash cuts words at = : and @ too. Here a word is what stands between blanks; start is where the last one begins
    # in COMP_WORDS. The walk ends at the word under the cursor, or where the command begins.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        if [[ $i -gt 0 && ($line == [[:blank:]]* || -z $line) ]]; then
            if ((start > 0)); then # word is complete
                if [[ -n $wanted ]]; then
                    wanted=''
                elif [[ -n $end || $word != -?* ]]; then
                    break
                elif [[ $word == -- ]]; then
                    end=yes
                else
                    wanted=$(_ssh_capture_wants "$word")
                fi
            fi
            line=${line#"${line%%[![:blank:]]*}"}
            start=$i word=''
        fi
        line=${line#"${COMP_WORDS[i]}"}
        word+=${COMP_WORDS[i]}
    done

    if [[ -z $wanted && -z $end && $word == --?*=* ]]; then
        wanted=${word%%=*}
    fi
    if ((i <= COMP_CWORD)) || [[ -z $wanted && (-n $end || $word != -*) ]]; then
        if declare -F _comp_command_offset >/dev/null; then # bash-completion 2.12 and newer
            _comp_command_offset "$start"
        elif declare -F _command_offset >/dev/null; then
            _command_offset "$start"
        elif ((start == COMP_CWORD)); then
            mapfile -t COMPREPLY < <(compgen -c -- "$cur")
        else
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        fi
        return
    fi
    case $wanted in
    '') mapfile -t COMPREPLY < <(compgen -W "$_ssh_capture_options" -- "$cur") ;;
    --via) mapfile -t COMPREPLY < <(compgen -A hostname -- "$cur") ;;
    --udp) mapfile -t COMPREPLY < <(compgen -W 'refuse direct' -- "$cur") ;;
    --backend) mapfile -t COMPREPLY < <(compgen -W 'auto cgroup namespace' -- "$cur") ;;
    --pid) mapfile -t COMPREPLY < <(compgen -W "$(ps -u "$UID" -o pid= 2>/dev/null)" -- "$cur") ;;
    --debug | -D) mapfile -t COMPREPLY < <(compgen -W '1 3 5 7' -- "$cur") ;;
    *)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        ;;
    esac
}

complete -F _ssh_capture ssh-capture
