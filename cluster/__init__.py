"""Where jobs run: a local cluster, submission to a remote one."""
