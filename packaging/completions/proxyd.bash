# bash completion for proxyd; made by packaging/generate_completions.py
_proxyd() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} path=${COMP_WORDS[1]} words="" files="" only="" i
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "serve demo top doctor check keys health reload usage chat models db schema openapi --help --version" -- "$word"))
        return
    fi
    if [[ " keys db " == *" $path "* ]]; then
        for ((i = 2; i < COMP_CWORD; i++)); do
            case "$path ${COMP_WORDS[i]}" in
                "keys create") path="keys create"; break ;;
                "keys list") path="keys list"; break ;;
                "keys show") path="keys show"; break ;;
                "keys rotate") path="keys rotate"; break ;;
                "keys revoke") path="keys revoke"; break ;;
                "db backup") path="db backup"; break ;;
                "db check") path="db check"; break ;;
                "db prune") path="db prune"; break ;;
                "db vacuum") path="db vacuum"; break ;;
            esac
        done
    fi
    case "$path $before" in
        "serve -c"|"serve --config") files=yes; only=yes ;;
        "serve --log-level") words="debug info warning error"; only=yes ;;
        "serve --log-format") words="json journal text"; only=yes ;;
        "demo -c"|"demo --config") files=yes; only=yes ;;
        "demo --port") words=""; only=yes ;;
        "top -c"|"top --config") files=yes; only=yes ;;
        "top --interval") words=""; only=yes ;;
        "top --format") words="text json"; only=yes ;;
        "doctor -c"|"doctor --config") files=yes; only=yes ;;
        "doctor --unit") files=yes; only=yes ;;
        "doctor --format") words="text json"; only=yes ;;
        "check -c"|"check --config") files=yes; only=yes ;;
        "check --format") words="text json github"; only=yes ;;
        "keys -c"|"keys --config") files=yes; only=yes ;;
        "keys create --models") words=""; only=yes ;;
        "keys create --rpm") words=""; only=yes ;;
        "keys create --tpm") words=""; only=yes ;;
        "keys create --concurrency") words=""; only=yes ;;
        "keys create --budget") words=""; only=yes ;;
        "keys create --expires") words=""; only=yes ;;
        "keys create --default-model") words=""; only=yes ;;
        "keys create --max-delay-ms") words=""; only=yes ;;
        "keys create --max-bytes") words=""; only=yes ;;
        "keys create -c"|"keys create --config") files=yes; only=yes ;;
        "keys list -c"|"keys list --config") files=yes; only=yes ;;
        "keys list --format") words="table json csv"; only=yes ;;
        "keys show -c"|"keys show --config") files=yes; only=yes ;;
        "keys show --format") words="table json csv"; only=yes ;;
        "keys rotate --grace") words=""; only=yes ;;
        "keys rotate -c"|"keys rotate --config") files=yes; only=yes ;;
        "keys revoke --key") words=""; only=yes ;;
        "keys revoke -c"|"keys revoke --config") files=yes; only=yes ;;
        "health -c"|"health --config") files=yes; only=yes ;;
        "health --format") words="text json"; only=yes ;;
        "reload -c"|"reload --config") files=yes; only=yes ;;
        "reload --ops") files=yes; only=yes ;;
        "reload --format") words="text json"; only=yes ;;
        "usage -c"|"usage --config") files=yes; only=yes ;;
        "usage --by") words="model caller upstream day conversation"; only=yes ;;
        "usage --since") words=""; only=yes ;;
        "usage --reprice") words="all missing"; only=yes ;;
        "usage --format") words="table json csv"; only=yes ;;
        "chat -c"|"chat --config") files=yes; only=yes ;;
        "chat --url") words=""; only=yes ;;
        "chat --key") words=""; only=yes ;;
        "chat --system") words=""; only=yes ;;
        "chat --delay") words=""; only=yes ;;
        "models -c"|"models --config") files=yes; only=yes ;;
        "models --format") words="table json csv"; only=yes ;;
        "db -c"|"db --config") files=yes; only=yes ;;
        "db backup -c"|"db backup --config") files=yes; only=yes ;;
        "db backup --format") words="text json"; only=yes ;;
        "db check -c"|"db check --config") files=yes; only=yes ;;
        "db check --format") words="text json"; only=yes ;;
        "db prune --older-than") words=""; only=yes ;;
        "db prune -c"|"db prune --config") files=yes; only=yes ;;
        "db prune --format") words="text json"; only=yes ;;
        "db vacuum -c"|"db vacuum --config") files=yes; only=yes ;;
        "db vacuum --format") words="text json"; only=yes ;;
        "schema -c"|"schema --config") files=yes; only=yes ;;
        "openapi -c"|"openapi --config") files=yes; only=yes ;;
    esac
    if [[ -z $only ]]; then
        case "$path" in
            "serve") words="-h --help -c --config --log-level --log-format" ;;
            "demo") words="-h --help -c --config --port --once" ;;
            "top") words="-h --help -c --config --interval --once --format" ;;
            "doctor") words="-h --help -c --config --unit --no-network --format" ;;
            "check") words="-h --help -c --config --format" ;;
            "keys") words="-h --help -c --config create list show rotate revoke" ;;
            "keys create") words="-h --help --models --rpm --tpm --concurrency --budget --expires --admin --default-model --max-delay-ms --max-bytes --compress --no-compress -c --config" ;;
            "keys list") words="-h --help -c --config --format" ;;
            "keys show") words="-h --help -c --config --format" ;;
            "keys rotate") words="-h --help --grace -c --config" ;;
            "keys revoke") words="-h --help --key -c --config" ;;
            "health") words="-h --help -c --config --ready --format" ;;
            "reload") words="-h --help -c --config --ops --format" ;;
            "usage") words="-h --help -c --config --by --since --reprice --format" ;;
            "chat") words="-h --help -c --config --url --key --system --delay --bytes" ;;
            "models") words="-h --help -c --config --format" ;;
            "db") words="-h --help -c --config backup check prune vacuum" ;;
            "db backup") words="-h --help -c --config --format" files=yes ;;
            "db check") words="-h --help -c --config --format" ;;
            "db prune") words="-h --help --older-than -c --config --format" ;;
            "db vacuum") words="-h --help -c --config --format" ;;
            "schema") words="-h --help -c --config" ;;
            "openapi") words="-h --help -c --config" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ $files == yes ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY+=($(compgen -f -- "$word"))
    fi
}
complete -F _proxyd proxyd
