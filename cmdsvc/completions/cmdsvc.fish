# Completes `ssh HOST NAME` in fish, from the commands that one may run there.
# Put it where fish reads it:  cmdsvc completion fish > ~/.config/fish/conf.d/cmdsvc.fish
# What follows ssh is an alias of ~/.ssh/config (see `ssh HOST :help ssh`); more in CMDSVC_HOSTS.

set -q CMDSVC_HOSTS; or set -g CMDSVC_HOSTS @HOST@

function __cmdsvc_words
    # The words from the host on: it is the first that is neither an option nor an option's value.
    set -l words (commandline -opc)
    set -e words[1]
    while set -q words[1]
        switch $words[1]
            case -B -b -c -D -E -e -F -I -i -J -L -l -m -O -o -p -Q -R -S -W -w
                set -e words[1]
            case '-*'
            case '*'
                break
        end
        set -e words[1]
    end
    string join \n -- $words
end

function __cmdsvc_at_name
    set -l words (__cmdsvc_words)
    test (count $words) -eq 1; and contains -- $words[1] (string split ' ' -- $CMDSVC_HOSTS)
end

function __cmdsvc_at_help
    set -l words (__cmdsvc_words)
    test (count $words) -eq 2; and test "$words[2]" = :help
    and contains -- $words[1] (string split ' ' -- $CMDSVC_HOSTS)
end

function __cmdsvc_names
    # The list is asked for once a minute at most, and never with a question to the user.
    set -l host (__cmdsvc_words)[1]
    set -l now (date +%s)
    if test "$host" != "$__cmdsvc_host"; or test (math $now - 0$__cmdsvc_time) -ge 60
        set -l list (command ssh -o BatchMode=yes -o ConnectTimeout=3 -o LogLevel=ERROR \
            $host :ls -a </dev/null 2>/dev/null |
            cut -f1 | grep -E '^[a-z0-9][a-z0-9._/-]*$' | sed 's,^cmd/\(.*\),\1\n&,')
        set -q list[1]; or return
        set -g __cmdsvc_list $list
        set -g __cmdsvc_host $host
        set -g __cmdsvc_time $now
    end
    string join \n -- $__cmdsvc_list
end

complete -c ssh -n __cmdsvc_at_name -f -a '(__cmdsvc_names)'
complete -c ssh -n __cmdsvc_at_name -f -a '@BUILTINS@'
complete -c ssh -n __cmdsvc_at_help -f -a '@BUILTINS@'
