"""Trains exits, stops and skip sets on source code: `keyturn calibrate`."""
