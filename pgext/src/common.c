/*
 * common.c
 *	  What the server, the simulation (writelib.c) and the library for tests of
 *	  keys and catalog deltas all link.
 */
#include "wire.h"

#include "store.h"

uint64
mer_conflict_hash(int64 sid, int kind, const char *key, uint32 len)
{
	uint64		v = UINT64CONST(0xCBF29CE484222325);

	for (int shift = 56; shift >= 0; shift -= 8)
		v = (v ^ (((uint64) sid >> shift) & 0xff)) * UINT64CONST(0x100000001B3);
	v = (v ^ (unsigned char) kind) * UINT64CONST(0x100000001B3);
	for (uint32 i = 0; i < len; i++)
		v = (v ^ (unsigned char) key[i]) * UINT64CONST(0x100000001B3);
	v ^= v >> 33;
	v *= UINT64CONST(0xFF51AFD7ED558CCD);
	v ^= v >> 33;
	v *= UINT64CONST(0xC4CEB9FE1A85EC53);
	return v ^ (v >> 33);
}

int
mer_take_sqlstate(MpReader *r)
{
	uint32		len;
	const char *state = mp_get_bytes(r, &len);

	if (len != 5)
		mp_malformed("SQLSTATE of another length");
	return MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
}
