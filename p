INFO:root:Initializing Python harness: /tmp/wt-a/.venv/lib/python3.11/site-packages/pyflink/fn_execution/beam/beam_boot.py --id=2-1 --provision_endpoint=localhost:36955
INFO:root:Starting up Python harness in a standalone process.
