package dev.calora

/**
 * How an adapter is opened. No text of it shows the key.
 *
 * @property key the 32 bytes that an encrypted adapter was encrypted with; a plain one does not need them. The array stays
 *   yours: fill it with zeros after the call
 * @property trustedSigners public keys of 32 bytes: only what one of them signed is opened. An empty list trusts nobody;
 *   with null no signature is asked for
 * @property checkCanary whether the adapter must prove, by two short passes, that it acts, and as it did where it was made
 */
public class AdapterOpenOptions(
    public val key: ByteArray? = null,
    public val trustedSigners: List<ByteArray>? = null,
    public val checkCanary: Boolean = false,
) {
    override fun toString(): String =
        "AdapterOpenOptions(key=${if (key == null) "none" else "hidden"}, " +
            "trustedSigners=${trustedSigners?.size}, checkCanary=$checkCanary)"

    internal fun toFfi() = dev.calora.ffi.AdapterOpenOptions(key, trustedSigners, checkCanary)
}
