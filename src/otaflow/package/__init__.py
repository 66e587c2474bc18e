"""Update packages (`.nsu`, `.nua`): metadata, how they are made and taken apart. See docs/package-format.md."""
