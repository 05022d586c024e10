/*
 * keyenc.h
 *	  Order-preserving forms of values, shared by row values and keys.
 */
#ifndef MERIDIAN_KEYENC_H
#define MERIDIAN_KEYENC_H

#include "meridian.h"

extern bool mer_collation_is_bytes(Oid collation);

/* Types of class integer as int64, and back (rowcodec.c). */
extern int64 mer_integer_get(Oid typid, Datum value);
extern Datum mer_integer_datum(Oid typid, int64 v);

/* Doubles as unsigned integers of the same order; -0 as 0, NaN greatest (orderbytes.c). */
extern uint64 mer_float_order(float8 v);
extern float8 mer_float_from_order(uint64 order);

/* Numerics: what the order bytes leave out, and the way back (orderbytes.c). */
extern uint16 mer_numeric_suffix(Datum flat);
extern Datum mer_numeric_from_order(const char *bytes, uint32 len, uint16 suffix);

/* Length of the numeric order bytes at p; they end themselves. */
extern uint32 mer_numeric_order_len(const char *p, const char *end);

#endif							/* MERIDIAN_KEYENC_H */
