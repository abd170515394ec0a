"""The pure domain: what usage costs. Structs in, structs out; no I/O and no clock."""
