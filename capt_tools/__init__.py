"""The tools around CAPT: one command line, the plans of runs, tables, reports."""
