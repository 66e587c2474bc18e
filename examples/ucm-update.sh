#!/bin/sh
# Update a device as an ordinary HTTP client, with curl alone: ucm-update.sh SOCKET PACKAGE
# The package is transferred in blocks, processed, activated, and finished when it proved itself healthy.
set -eu
socket=$1 package=$2

ucm() {  # ucm METHOD [curl's arguments]: prints the answer; an error ends the script with its message
    method=$1; shift
    answer=$(curl --silent --show-error --unix-socket "$socket" --request POST "http://device/ucm/$method" "$@")
    case $answer in *'"error"'*) echo "$method: $answer" >&2; exit 1 ;; esac
    printf '%s\n' "$answer"
}
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p"; }
state() { curl --silent --unix-socket "$socket" http://device/ucm/CurrentStatus | field status; }

size=$(wc -c < "$package")
started=$(ucm TransferStart --data "{\"size\": $size}")
id=$(echo "$started" | field id)
block=${BLOCK:-$(echo "$started" | field blockSize)}
counter=1 sent=0
while [ "$sent" -lt "$size" ]; do
    sent=$(tail -c +$((sent + 1)) "$package" | head -c "$block" |
        ucm "TransferData?id=$id&blockCounter=$counter" --header 'Content-Type: application/octet-stream' --data-binary @- |
        field consecutiveBytesReceived)
    echo "block $counter: $sent of $size bytes"
    counter=$((counter + 1))
done
ucm TransferExit --data "{\"id\": \"$id\"}" > /dev/null
ucm ProcessSwPackage --data "{\"id\": \"$id\"}" > /dev/null
echo "processed: $(state)"
ucm Activate > /dev/null
while [ "$(state)" = Verifying ]; do sleep 0.2; done
echo "verified: $(state)"
[ "$(state)" = Activated ] || { while [ "$(state)" = Rolling-back ]; do sleep 0.2; done; ucm Finish > /dev/null; echo "rolled back: $(state)"; exit 1; }
[ "${FINISH:-yes}" = yes ] || exit 0
ucm Finish > /dev/null
echo "finished: $(state)"
ucm GetSwClusterInfo
