"""The eager model, in plain torch: what is exported, and the float reference that the export is measured against."""
