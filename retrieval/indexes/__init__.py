"""The methods, one file each: which tokens should a decode step read?"""
