/*
 * writelib.h
 *	  Between the parts of the library that the simulation loads.
 */
#ifndef MERIDIAN_WRITELIB_H
#define MERIDIAN_WRITELIB_H

/* Ends the call of the library that is under way; the text must stay. */
pg_noreturn extern void merw_fail(const char *why);

#endif							/* MERIDIAN_WRITELIB_H */
