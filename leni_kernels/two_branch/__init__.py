"""What LENI and Reborn share: a branch of the positive part, one of the deconvolved negative part, and their fusion."""
