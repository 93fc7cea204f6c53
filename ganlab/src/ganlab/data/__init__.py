"""Everything that touches files: scenes, tile stores, batches and invented or real samples."""
