#!/bin/sh
# Bring the former system back, with curl alone: ucm-rollback.sh SOCKET
# The device is Activated (or Verifying): an update was activated and is not finished.
set -eu
socket=$1

ucm() {
    answer=$(curl --silent --show-error --unix-socket "$socket" --request POST "http://device/ucm/$1")
    case $answer in *'"error"'*) echo "$1: $answer" >&2; exit 1 ;; esac
    printf '%s\n' "$answer"
}

ucm Rollback > /dev/null
curl --silent --unix-socket "$socket" http://device/ucm/CurrentStatus; echo
ucm Finish > /dev/null
curl --silent --unix-socket "$socket" http://device/ucm/CurrentStatus; echo
ucm GetSwClusterInfo
