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
label="" flags=""
for word in $(busybox cat /proc/cmdline); do
    case "$word" in
    root=LABEL=*) label="${word#root=LABEL=}" ;;
    rootflags=*) flags="${word#rootflags=}" ;;
    esac
done
tries=0
until [ -b /dev/vda2 ] || [ $tries -ge 200 ]; do
    busybox sleep 0.05
    tries=$((tries + 1))
done
case "$label $flags" in
"otaflow subvol="*) slot=/dev/vda2 kind=btrfs top=subvolid=5 ;;
"otaflow-a ") slot=/dev/vda3 kind=ext4 flags=rw top=rw ;;
"otaflow-b ") slot=/dev/vda4 kind=ext4 flags=rw top=rw ;;
*) fail "no slot is named: $label $flags" ;;
esac
busybox mount -t $kind -o "noatime,$flags" $slot /newroot || fail "cannot mount the slot $slot $flags"
busybox mount -t $kind -o "noatime,$top" /dev/vda2 /newroot/device || fail "cannot mount the device's folder"
busybox mount -t ext4 -o noatime /dev/vda1 /newroot/boot/loader || fail "cannot mount the boot loader's file system"
for folder in dev proc sys; do busybox mount --move /$folder /newroot/$folder; done
exec /bin/busybox switch_root /newroot /sbin/init
