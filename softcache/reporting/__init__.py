"""The page of ``softcache report``: what runs came to, as one HTML file that needs nothing else."""
