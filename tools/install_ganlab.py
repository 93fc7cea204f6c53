"""What pip finds when it is asked to install the repository: where the package is."""

raise SystemExit(
    "This folder is the book. The library is the folder ganlab in it: pip install ./ganlab"
)
