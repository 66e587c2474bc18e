"""The update policy's rules, and what a device remembers for them (spec/s16-package-update.md).

Rules (`windows`, `decide`, `explain`, `words`) are values in, values out. Stores (`consent`, `failures`, `inbox`) are
small files in the device's nvm, durable when a call returns. Every moment is an aware `datetime`, from the caller.
"""
