package dev.calora

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.Duration.Companion.minutes
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

/** The repository's `models` folder. */
internal val models = File(checkNotNull(System.getProperty("calora.models")) { "set -Dcalora.models" })

internal val base = File(models, "base")

/** The PEFT folder of a task. */
internal fun task(name: String) = File(models, "adapters/$name")

internal const val SPAM = "CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize"
internal const val COMMAND = "what will the weather be in Lisbon on Friday"
internal const val SPOKEN = "What is the longest, uh, I mean the widest river in France?"

internal fun on(model: File = base) = EngineConfig(model, device = DeviceChoice.CPU)

/** A test with coroutines that ends, one way or the other. */
internal fun test(limit: Duration = 2.minutes, body: suspend CoroutineScope.() -> Unit) =
    runBlocking(Dispatchers.Default) { withTimeout(limit, body) }

/** A test with the shipped model. */
internal fun engineTest(config: EngineConfig = on(), body: suspend CoroutineScope.(Engine) -> Unit) = test {
    Engine.load(config).use { body(it) }
}

/** What an attempt throws, which must be of this kind. */
internal suspend inline fun <reified E : Throwable> thrownBy(attempt: suspend () -> Unit): E {
    try {
        attempt()
    } catch (e: Throwable) {
        if (e is E) return e
        throw AssertionError("expected ${E::class.simpleName}, got $e", e)
    }
    throw AssertionError("expected ${E::class.simpleName}, nothing was thrown")
}

/** Engine threads of this process; null where the system does not tell. */
internal fun engineThreads(): Int? =
    File("/proc/self/task").listFiles()?.count { task ->
        runCatching { File(task, "comm").readText().trim() }.getOrNull() == "calora-engine"
    }

/** Waits until every engine of this process has ended; fails where one stays. */
internal suspend fun awaitNoEngine() {
    repeat(600) {
        if ((engineThreads() ?: 0) == 0) return
        delay(100.milliseconds)
    }
    throw AssertionError("${engineThreads()} engines are left")
}

/** Copies a folder with one file of it changed. */
internal fun copyWith(from: File, to: File, name: String, change: (ByteArray) -> ByteArray): File {
    from.copyRecursively(to)
    val file = File(to, name)
    file.writeBytes(change(file.readBytes()))
    // Ids that an earlier load has kept beside the weights.
    File(to, ".calora-id.json").delete()
    return to
}

/** Replaces a text of the same length in the header of a safetensors file. */
internal fun renameTensors(file: ByteArray, old: String, new: String): ByteArray {
    require(old.length == new.length)
    val length = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN).getLong(0).toInt()
    val header = String(file, 8, length).replace(old, new)
    return file.copyOf().also { header.toByteArray().copyInto(it, 8) }
}
