"""The call machinery. It knows no message and no network library."""
