"""What is submitted and what runs it: entries and the workflow at the root, one room a concept."""
