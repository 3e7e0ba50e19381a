"""`python -m conntrackd` is the daemon's command line."""

from conntrackd.cli.daemon import main

if __name__ == "__main__":
    main()
