"""Pure decisions: what a record is, why it failed, whether the books balance.

Nothing here imports PyFlink, reads a clock, draws a random number or looks at the environment. Time
comes in as a parameter, so that a replay after a restart decides exactly as the first pass did, and
so that each rule is tested in milliseconds without a JVM.

| module | decides |
|---|---|
| `contract` | what a good event looks like, and the columns that follow from it |
| `times` | how an instant is written, and what lies outside the calendar |
| `poison` | which records the user wants out of the way whatever they say |
| `verdict` | accepted, dead letter or quarantine, with every violation named |
| `failure` | the one table from error type to failure category |
| `fingerprint` | which failures are the same fault |
| `envelope` | how a failed record is written down |
| `ledger` | whether the books balance |
| `splits` | how input files are cut into ranges to read |
"""
