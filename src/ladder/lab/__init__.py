"""The lab: experiments that test published claims about the techniques over several seeds."""
