"""The data that is installed with softcache."""
