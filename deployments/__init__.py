"""The Ray Serve application: what runs in the cluster, built from the library `conserve`."""
