# fish completion for ssh-capture, written by hand: behind the options stands the command line of another program,
# which is completed as such.

set -l with_argument --via -f --config-file -a --broker-address --udp -D --debug --backend --pid

complete -c ssh-capture -x -a "(__fish_complete_subcommand -- $with_argument)" -d Command
complete -c ssh-capture -l via -x -a "(__fish_print_hostnames)" -d "Send everything through this SSH server"
complete -c ssh-capture -s f -l config-file -r -F -d "Take the rules from this file for this command alone"
complete -c ssh-capture -s a -l broker-address -r -F -d "Use the broker at this socket"
complete -c ssh-capture -s l -l localhost -d "Judge connections to the local host by the rules as well"
complete -c ssh-capture -s F -l fallback -d "Run COMMAND uncaptured if no broker can be reached or started"
complete -c ssh-capture -l allow-direct -d "Run COMMAND even if no filter rules exist"
complete -c ssh-capture -l udp -x -a "refuse direct" -d "What becomes of UDP other than name queries"
complete -c ssh-capture -s D -l debug -x -a "1 3 5 7" -d "Tell on standard error"
complete -c ssh-capture -l backend -x -a "auto cgroup namespace" -d "How to capture"
complete -c ssh-capture -l strict -d "Start the command only after the capture was proved to hold"
complete -c ssh-capture -l close-sockets -d "Close network sockets that the command would inherit"
complete -c ssh-capture -l pid -x -a "(__fish_complete_pids)" -d "Capture a process that runs already"
complete -c ssh-capture -s V -l version -d "Print the version"
complete -c ssh-capture -s h -l help -d "Print help"
