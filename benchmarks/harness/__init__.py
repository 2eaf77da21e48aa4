"""What every benchmark shares: fair times, the parity gate, the facts of the machine, and the report."""
