"""`python -m steadfeast`: the command line, where its program is not on the PATH."""

from steadfeast.featurestore.cli import main

if __name__ == "__main__":
    main()
