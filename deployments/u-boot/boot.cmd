# U-Boot's script on a device of otaflow: it starts the slot that otaflow has chosen, and falls back from one on trial.
#
#   mkimage -A arm64 -T script -C none -d boot.cmd boot.scr
#
# and boot.scr on the partition that U-Boot's `bootcmd` looks at. docs/installation.md has it all. In the environment
# (platform/u_boot.py writes it):
#   otaflow_target, otaflow_fallback          the slot to start, and the other one
#   upgrade_available, bootcount, bootlimit   while the first is 1, U-Boot itself counts the starts in the second
#                                             (CONFIG_BOOTCOUNT_LIMIT and CONFIG_BOOTCOUNT_ENV)
# Above bootlimit U-Boot runs `altbootcmd` in place of bootcmd: it has to be "run bootcmd", as this script decides.
# Without an environment the first slot that has a kernel is started.

# --- what a device may set in its environment -----------------------------------------------------------------------

# slots on partitions of their own: otaflow_device_a and otaflow_device_b, such as "mmc 0:3" and "mmc 0:4"
# else otaflow_slots is their folder on the btrfs of otaflow_device, and otaflow_root is how Linux finds that
if test -z "${otaflow_device}"; then setenv otaflow_device "${devtype} ${devnum}:${distro_bootpart}"; fi
if test -z "${otaflow_slots}"; then setenv otaflow_slots /slots; fi
if test -z "${otaflow_names}"; then setenv otaflow_names "a b"; fi
if test -z "${otaflow_root}"; then setenv otaflow_root "LABEL=otaflow"; fi
# panic: a kernel that cannot go on restarts, and the start was a try
# rw: a system that writes into its root; ro where /var and whatever else is written has a place of its own
if test -z "${otaflow_options}"; then setenv otaflow_options "rw quiet panic=10"; fi
# booti for arm64, bootz for arm
if test -z "${otaflow_boot}"; then setenv otaflow_boot booti; fi

# --- what it does ---------------------------------------------------------------------------------------------------

setenv otaflow_order "${otaflow_target} ${otaflow_fallback}"
setenv otaflow_tried
if test "${upgrade_available}" = 1; then
    if test "${bootcount}" -gt "${bootlimit}"; then
        echo "otaflow: slot ${otaflow_target} has no tries left"
        setenv otaflow_order "${otaflow_fallback}"
    else
        echo "otaflow: slot ${otaflow_target} is on trial, try ${bootcount} of ${bootlimit}"
        setenv otaflow_tried "${otaflow_target}"
    fi
fi

for slot in ${otaflow_order} ${otaflow_names}; do
    # a variable whose name is put together is read by a command that is
    setenv otaflow_look "setenv otaflow_from \"\${otaflow_device_${slot}}\""
    run otaflow_look
    if test -n "${otaflow_from}"; then
        setenv otaflow_tree
        setenv otaflow_uuid
        part uuid ${otaflow_from} otaflow_uuid
        # Linux finds a card later than it looks for its root, and no initial RAM disk waits for it. Not for ever: a
        # kernel that never finds it panics, and the start was a try. Before Linux 6.7 there is rootdelay instead.
        setenv otaflow_place "root=PARTUUID=${otaflow_uuid} rootwait=30"
    else
        setenv otaflow_from "${otaflow_device}"
        setenv otaflow_tree "${otaflow_slots}/${slot}"
        setenv otaflow_place "root=${otaflow_root} rootflags=subvol=${otaflow_tree}"
    fi
    if load ${otaflow_from} ${kernel_addr_r} ${otaflow_tree}/vmlinuz; then
        echo "otaflow: slot ${slot}"
        setenv otaflow_flags "otaflow.slot=${slot}"
        # for otaflow-trial.service: it restarts a slot on trial, also one in which otaflow does not start
        if test "${slot}" = "${otaflow_tried}"; then setenv otaflow_flags "${otaflow_flags} otaflow.trial=1"; fi
        setenv bootargs "${otaflow_place} ${otaflow_flags} ${otaflow_options}"
        # the device tree of the slot, else U-Boot's own
        setenv otaflow_fdt "${fdtcontroladdr}"
        if load ${otaflow_from} ${fdt_addr_r} ${otaflow_tree}/dtb; then setenv otaflow_fdt "${fdt_addr_r}"; fi
        setenv otaflow_initrd -
        if load ${otaflow_from} ${ramdisk_addr_r} ${otaflow_tree}/initrd.img; then
            setenv otaflow_initrd "${ramdisk_addr_r}:${filesize}"
        fi
        ${otaflow_boot} ${kernel_addr_r} ${otaflow_initrd} ${otaflow_fdt}
    fi
    echo "otaflow: slot ${slot} cannot be started"
done

echo "otaflow: there is nothing to start; trying again in a minute"
sleep 60
reset
