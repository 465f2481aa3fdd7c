package dev.calora

import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * Adapters of one engine, file by file: opened, made resident, and let go. A folder of them is an [AdapterLibrary].
 */
public class Adapters internal constructor(private val engine: dev.calora.ffi.Engine) {
    /**
     * Maps a task file or PEFT folder and checks that it belongs to this model. Its tensors stay in the file until they
     * are used; an encrypted one is decrypted into memory, which is overwritten once nobody uses it.
     *
     * @throws EngineException.FileNotFound where there is none
     * @throws EngineException.InvalidFile if it is damaged or no adapter
     * @throws EngineException.Unsupported if it needs something that would not be computed
     * @throws EngineException.AdapterMismatch if it was made for another base, or its shapes are another model's
     * @throws EngineException.AdapterTouchesNothing if it would change nothing
     * @throws EngineException.AdapterLocked if it is encrypted and [options] have another key or none
     * @throws EngineException.AdapterUntrusted if none of the trusted signers signed it as it is
     * @throws EngineException.AdapterUnproven if its canary is checked, and it does nothing or something else
     * @throws EngineException.Closed after [Engine.close]
     */
    public suspend fun open(file: File, options: AdapterOpenOptions = AdapterOpenOptions()): TaskAdapter =
        TaskAdapter(awaitNative({ it.destroy() }) { engine.openAdapterWith(file.path, options.toFfi()) })

    /**
     * Makes an adapter resident and keeps it so, whatever the budget: attaching it then moves no bytes.
     *
     * @throws EngineException.OutOfMemory if there is no room
     * @throws EngineException.Closed after [Engine.close] or [TaskAdapter.close]
     */
    public suspend fun preload(adapter: TaskAdapter): Unit = awaitNative { engine.preload(adapter.ffi) }

    /**
     * Lets go of a resident adapter; it stays where a session uses it.
     *
     * @throws EngineException.Closed after [Engine.close] or [TaskAdapter.close]
     */
    public suspend fun evict(adapter: TaskAdapter): Unit = awaitNative { engine.evict(adapter.ffi) }

    public companion object {
        /**
         * Reads the header of a task file or PEFT folder; needs no engine and reads no tensor.
         *
         * @throws EngineException.FileNotFound where there is none
         * @throws EngineException.InvalidFile if it is damaged or no adapter
         * @throws EngineException.Unsupported if it needs something that would not be computed
         * @throws EngineException.AdapterLocked if it is encrypted: then nothing of it can be read without its key
         */
        public suspend fun inspect(file: File): AdapterInfo =
            withContext(Dispatchers.IO) { native { dev.calora.ffi.inspectAdapter(file.path).toApi() } }

        /**
         * Encrypts a task file and writes the result to [to], which may be the same file. Nothing unencrypted is written.
         *
         * @param key 32 random bytes that the app keeps, best under a key of the Android Keystore
         * @throws EngineException.FileNotFound where there is none
         * @throws EngineException.InvalidFile if it is damaged or no task file
         * @throws EngineException.InvalidOption if the key has another length
         * @throws EngineException.Unsupported for a PEFT folder (pack it first) and for what is encrypted already
         */
        public suspend fun encrypt(file: File, to: File, key: ByteArray): Unit =
            withContext(Dispatchers.IO) { native { dev.calora.ffi.encryptAdapter(file.path, to.path, key) } }
    }
}
