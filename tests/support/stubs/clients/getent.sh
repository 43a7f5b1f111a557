# getent. Reads and prints the lines that libc.c describes. It says "not found" (2) whatever the reason.
while read -r verb name; do
    case $verb in
    addresses) found=$(getent ahosts "$name"); code=$?
        found=$(echo "$found" | awk '$2 == "STREAM" { print $1 }') ;;
    owner) found=$(getent hosts "$name"); code=$?
        found=$(echo "$found" | awk '{ print $2 }') ;;
    *) found=; code=1 ;;
    esac
    # Unquoted, so that it becomes one line.
    case $code in
    0) echo OK $found ;;
    2) echo FAILED NOTFOUND ;;
    *) echo "FAILED with $code" ;;
    esac
done
