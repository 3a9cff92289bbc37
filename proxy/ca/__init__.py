"""The authority as a process: `sidewall ca serve`."""
