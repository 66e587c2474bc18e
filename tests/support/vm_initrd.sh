#!/bin/busybox sh
# The initrd of a virtual machine: load what is needed, mount the slot that the boot loader names, start its system.
# It mounts the other file systems as well, in place of /etc/fstab: udev costs more than all of the rest of a boot.
# What goes wrong ends in a kernel panic, as it does without an initrd.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
alias busybox=/bin/busybox

fail() {
    echo "initrd: $*"
    exit 1
}

while read -r module; do busybox insmod "/modules/$module" 2>/dev/null; done </modules/order
flags=""
for word in $(busybox cat /proc/cmdline); do
    case "$word" in
    rootflags=*) flags="${word#rootflags=}" ;;
    esac
done
tries=0
until [ -b /dev/vda2 ] || [ $tries -ge 200 ]; do
    busybox sleep 0.05
    tries=$((tries + 1))
done
[ -n "$flags" ] || fail "no slot is named"
busybox mount -t btrfs -o "noatime,$flags" /dev/vda2 /newroot || fail "cannot mount the slot $flags"
busybox mount -t btrfs -o noatime,subvolid=5 /dev/vda2 /newroot/device || fail "cannot mount the device's folder"
busybox mount -t ext4 -o noatime /dev/vda1 /newroot/boot/loader || fail "cannot mount the boot loader's file system"
for folder in dev proc sys; do busybox mount --move /$folder /newroot/$folder; done
exec /bin/busybox switch_root /newroot /sbin/init
