# fish completion for ssh-captured, written by hand.

complete -c ssh-captured -f
complete -c ssh-captured -s a -l socket -r -F -d "Listen at this socket"
complete -c ssh-captured -l state-dir -x -a "(__fish_complete_directories)" -d "Keep here what has to outlive the process"
complete -c ssh-captured -l admin-group -x -a "(__fish_complete_groups)" -d "Let members of this group set system-wide rules"
complete -c ssh-captured -l release -d "Open everything again"
complete -c ssh-captured -l origin -x -a "auto proc" -d "How to find the process behind a connection"
complete -c ssh-captured -l no-keeper -d "Have no parent that keeps the sockets"
complete -c ssh-captured -s D -l debug -d "Log more"
complete -c ssh-captured -s V -l version -d "Print the version"
complete -c ssh-captured -s h -l help -d "Print help"
