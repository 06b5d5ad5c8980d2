"""Writers: the host code that performs log and host actions."""
