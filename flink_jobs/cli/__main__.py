"""python -m flink_jobs.cli: the `breakwater` command."""

from flink_jobs.cli.app import main

if __name__ == "__main__":
    main()
