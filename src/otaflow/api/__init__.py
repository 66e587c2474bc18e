"""The HTTP interface of the update manager: AUTOSAR PackageManagement, as docs/spec/ucm-api.md fixes it."""
