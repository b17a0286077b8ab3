# Completes `ssh HOST NAME` in bash, from the commands that one may run there.
# Put it where your .bashrc reads it:  cmdsvc completion bash >> ~/.bash_completion
# What follows ssh is an alias of ~/.ssh/config (see `ssh HOST :help ssh`); more in CMDSVC_HOSTS.

CMDSVC_HOSTS=${CMDSVC_HOSTS:-@HOST@}

_cmdsvc_names() {
  # The list is asked for once a minute at most, and never with a question to the user.
  local host=$1 now=${EPOCHSECONDS:-$(date +%s)}
  if [[ $host != "$_cmdsvc_host" || $((now - _cmdsvc_at)) -ge 60 ]]; then
    _cmdsvc_list=$(command ssh -o BatchMode=yes -o ConnectTimeout=3 -o LogLevel=ERROR \
      "$host" :ls -a </dev/null 2>/dev/null |
      cut -f1 | grep -E '^[a-z0-9][a-z0-9._/-]*$' | sed 's,^cmd/\(.*\),\1\n&,')
    [[ $_cmdsvc_list ]] || return
    _cmdsvc_host=$host _cmdsvc_at=$now
  fi
}

_cmdsvc_ssh() {
  # The host is the first word that is neither an option nor an option's value.
  local index word host=
  for ((index = 1; index < COMP_CWORD; index++)); do
    word=${COMP_WORDS[index]}
    case $word in
      -[BbcDEeFIiJLlmOopQRSWw]) ((index++)) ;;
      -*) ;;
      *) host=$word; break ;;
    esac
  done
  if [[ -z $host || " $CMDSVC_HOSTS " != *" $host "* ]]; then
    if [[ $_cmdsvc_before ]]; then
      "$_cmdsvc_before" "$@"
    fi
    return
  fi
  # ":" separates words for readline, so `:ls` arrives as two, and only its second is replaced.
  local line=${COMP_LINE:0:COMP_POINT} typed
  typed=${line##*[[:space:]]}
  local words=${line%"$typed"}
  [[ $words =~ [[:space:]]"$host"[[:space:]]+(:help[[:space:]]+)?$ ]] || return
  local list='@BUILTINS@' name prefix=
  if [[ $typed != :* && -z ${BASH_REMATCH[1]} ]]; then
    _cmdsvc_names "$host"
    list=$_cmdsvc_list
  elif [[ $COMP_WORDBREAKS == *:* && $typed == :* ]]; then
    prefix=:
  fi
  for name in $list; do
    [[ $name == "$typed"* ]] && COMPREPLY+=("${name#"$prefix"}")
  done
}

# What completed ssh before goes on to complete it for other hosts.
_cmdsvc_found() { complete -p ssh 2>/dev/null | sed -n 's/.*-F \([^ ]*\).*/\1/p'; }
if [[ $(_cmdsvc_found) != _cmdsvc_ssh ]]; then
  if [[ -z $(_cmdsvc_found) ]] && declare -F _completion_loader >/dev/null; then
    _completion_loader ssh >/dev/null 2>&1
  fi
  _cmdsvc_before=$(_cmdsvc_found)
  complete -o default -F _cmdsvc_ssh ssh
fi
