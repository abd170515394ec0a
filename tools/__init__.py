"""What makes files of this repository: generated code and the bundled prices. Not shipped."""
