# Bash completion of gnomon.
_gnomon()
{
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local options='--kernel --initrd --append --bios --memory --cpus --cpu --disk --serial --debugcon --display --engine
        --direct --policy --stats --trace --on-crash --on-reboot --timeout --sandbox --cell --perf --deterministic --stop-at
        --help'
    COMPREPLY=()
    # readline splits at '=' and ':'.
    if [[ $current == '=' ]]; then
        current=
    elif [[ $previous == '=' && $COMP_CWORD -ge 2 ]]; then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    if [[ $COMP_CWORD -eq 1 ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'run info diverge help --version' -- "$current")
        return
    fi
    case ${COMP_WORDS[1]} in
    help)
        [[ $COMP_CWORD -eq 2 ]] && mapfile -t COMPREPLY < <(compgen -W 'run machine-file keys exit cpu trace info diverge' -- "$current")
        return ;;
    info)
        [[ $COMP_CWORD -eq 2 ]] && mapfile -t COMPREPLY < <(compgen -W '--json --help' -- "$current")
        return ;;
    run) ;;
    diverge) options+=' --a --b --gnomon-a --gnomon-b --from --until --every' ;;
    *) return ;;
    esac
    case $previous in
    --kernel|--initrd|--bios|--disk) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    --memory) mapfile -t COMPREPLY < <(compgen -W '256M 512M 1G 2G 4G' -- "$current") ;;
    --cpus) COMPREPLY=(1) ;;
    --cpu) mapfile -t COMPREPLY < <(compgen -W 'default host v2 v3 v4 pentium2 pentium 486' -- "$current") ;;
    --serial) compopt -o nospace; mapfile -t COMPREPLY < <(compgen -W 'stdio file: unix: pty none' -- "$current") ;;
    --debugcon) compopt -o nospace; mapfile -t COMPREPLY < <(compgen -W 'stdio file: none' -- "$current") ;;
    --display) COMPREPLY=(none) ;;
    --engine) mapfile -t COMPREPLY < <(compgen -W 'auto software hardware' -- "$current") ;;
    --stats) mapfile -t COMPREPLY < <(compgen -W 'on json off' -- "$current") ;;
    --trace) mapfile -t COMPREPLY < <(compgen -W 'code exc mmu io cpu all' -- "$current") ;;
    --direct) mapfile -t COMPREPLY < <(compgen -W 'auto off always' -- "$current") ;;
    --policy) mapfile -t COMPREPLY < <(compgen -W 'auto checked user raw' -- "$current") ;;
    --on-crash) mapfile -t COMPREPLY < <(compgen -W 'exit reset halt' -- "$current") ;;
    --on-reboot) mapfile -t COMPREPLY < <(compgen -W 'reset exit' -- "$current") ;;
    --sandbox|--cell|--perf|--deterministic) mapfile -t COMPREPLY < <(compgen -W 'on off' -- "$current") ;;
    --gnomon-a|--gnomon-b) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    --append|--timeout|--stop-at|--a|--b|--from|--until|--every) ;;
    esac
    # --stats, --perf and --deterministic may also stand alone, before another option.
    if [[ $current == -* || ! $previous == --* ]]; then
        local words
        mapfile -t words < <(compgen -W "$options" -- "$current")
        COMPREPLY+=("${words[@]}")
        if [[ $current != -* ]]; then
            compopt -o filenames
            mapfile -t words < <(compgen -f -X '!*.ini' -- "$current")
            COMPREPLY+=("${words[@]}")
        fi
    fi
}
complete -F _gnomon gnomon
