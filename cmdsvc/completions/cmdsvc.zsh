# Completes `ssh HOST NAME` in zsh, from the commands that one may run there.
# Read it in your .zshrc after compinit:  source <(cmdsvc completion zsh)
# What follows ssh is an alias of ~/.ssh/config (see `ssh HOST :help ssh`); more in CMDSVC_HOSTS.

: ${CMDSVC_HOSTS:=@HOST@}
typeset -g _cmdsvc_host= _cmdsvc_at=0
typeset -ga _cmdsvc_list=()
zmodload zsh/datetime

_cmdsvc_ssh() {
  # The host is the first word that is neither an option nor an option's value.
  local -i index
  local host=
  for ((index = 2; index < CURRENT; index++)); do
    case ${words[index]} in
      -[BbcDEeFIiJLlmOopQRSWw]) ((index++)) ;;
      -*) ;;
      *) host=${words[index]}; break ;;
    esac
  done
  if [[ -z $host || " $CMDSVC_HOSTS " != *" $host "* ]]; then
    (( $+functions[_ssh] )) || autoload -Uz _ssh
    _ssh "$@"
    return
  fi
  local -a builtins=(@BUILTINS@)
  if ((CURRENT == index + 2)) && [[ ${words[index + 1]} == :help ]]; then
    compadd -a builtins
    return
  fi
  ((CURRENT == index + 1)) || return
  if [[ ${words[CURRENT]} == :* ]]; then
    compadd -a builtins
    return
  fi
  # The list is asked for once a minute at most, and never with a question to the user.
  if [[ $host != $_cmdsvc_host ]] || ((EPOCHSECONDS - _cmdsvc_at >= 60)); then
    local -a list=(${(f)"$(command ssh -o BatchMode=yes -o ConnectTimeout=3 -o LogLevel=ERROR \
      $host :ls -a </dev/null 2>/dev/null |
      cut -f1 | grep -E '^[a-z0-9][a-z0-9._/-]*$' | sed 's,^cmd/\(.*\),\1\n&,')"})
    (($#list)) || return
    _cmdsvc_list=($list) _cmdsvc_host=$host _cmdsvc_at=$EPOCHSECONDS
  fi
  compadd -a _cmdsvc_list
}

compdef _cmdsvc_ssh ssh
