package dev.calora.assistant

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.net.HttpURLConnection
import java.net.URL
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import java.security.MessageDigest
import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.conflate
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/** How far a download is; [totalBytes] is null where the server does not say. */
data class DownloadProgress(val receivedBytes: Long, val totalBytes: Long?)

/** Why a download failed. */
sealed class DownloadException(message: String) : IOException(message) {
    /** The server refused. */
    class Refused(val status: Int) : DownloadException("the server answered $status")

    /** The connection ended early; trying again goes on where it stopped. */
    class Interrupted(val receivedBytes: Long) : DownloadException("the connection ended after $receivedBytes bytes")

    /** What arrived is not the file that was wanted; it was deleted. */
    class WrongChecksum(val expected: String, val actual: String) :
        DownloadException("the file's SHA-256 is $actual, $expected was expected")
}

/**
 * Downloads a file that must have a known SHA-256. What has arrived is kept beside the target, so that the next try
 * goes on there; the target appears whole and verified, or not at all. Collecting starts it, cancelling stops it.
 *
 * @param silence how long the server may say nothing; a cancellation waits that long for it, too
 */
class Download(
    private val url: URL,
    private val target: File,
    sha256: String,
    private val silence: Duration = 10.seconds,
) {
    private val expected = sha256.lowercase()
    private val part = File(target.path + ".part")

    /** The server's name for the version of which [part] is the beginning. */
    private val version = File(target.path + ".part.etag")

    fun run(): Flow<DownloadProgress> =
        flow {
                if (target.exists() && hashOf(target) == expected) {
                    emit(DownloadProgress(target.length(), target.length()))
                    return@flow
                }
                target.absoluteFile.parentFile?.mkdirs()
                receive()
                finish()
            }
            .conflate()
            .flowOn(Dispatchers.IO)

    private suspend fun FlowCollector<DownloadProgress>.receive() {
        val connection = url.openConnection() as HttpURLConnection
        try {
            connection.connectTimeout = silence.inWholeMilliseconds.toInt()
            connection.readTimeout = silence.inWholeMilliseconds.toInt()
            receiveFrom(connection)
        } finally {
            connection.disconnect()
        }
    }

    private suspend fun FlowCollector<DownloadProgress>.receiveFrom(connection: HttpURLConnection) {
        val kept = if (version.exists()) part.length() else 0
        // A compressed answer would have other byte positions.
        connection.setRequestProperty("Accept-Encoding", "identity")
        if (kept > 0) {
            connection.setRequestProperty("Range", "bytes=$kept-")
            connection.setRequestProperty("If-Range", version.readText())
        }
        val start =
            when (val status = connection.responseCode) {
                HttpURLConnection.HTTP_OK -> 0
                HttpURLConnection.HTTP_PARTIAL -> kept
                // Nothing is left to send: the checksum decides.
                RANGE_NOT_SATISFIABLE -> return
                else -> throw DownloadException.Refused(status)
            }
        if (start == 0L) remember(connection.getHeaderField("ETag"))
        val total = connection.contentLengthLong.takeIf { it >= 0 }?.plus(start)
        RandomAccessFile(part, "rw").use { file ->
            file.setLength(start)
            file.seek(start)
            copy(connection, file, total)
            file.fd.sync()
        }
    }

    private suspend fun FlowCollector<DownloadProgress>.copy(
        connection: HttpURLConnection,
        file: RandomAccessFile,
        total: Long?,
    ) {
        val buffer = ByteArray(64 * 1024)
        try {
            connection.inputStream.use { input ->
                while (true) {
                    currentCoroutineContext().ensureActive()
                    val n = input.read(buffer)
                    if (n < 0) break
                    file.write(buffer, 0, n)
                    emit(DownloadProgress(file.filePointer, total))
                }
            }
        } catch (e: IOException) {
            currentCoroutineContext().ensureActive()
            throw DownloadException.Interrupted(file.filePointer).initCause(e)
        }
        if (total != null && file.filePointer < total) throw DownloadException.Interrupted(file.filePointer)
    }

    /** Only a strong validator promises the same bytes; without one the next try starts anew. */
    private fun remember(etag: String?) {
        if (etag == null || etag.startsWith("W/")) version.delete() else version.writeText(etag)
    }

    private fun finish() {
        val actual = hashOf(part)
        version.delete()
        if (actual != expected) {
            part.delete()
            throw DownloadException.WrongChecksum(expected, actual)
        }
        Files.move(part.toPath(), target.toPath(), StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING)
    }

    private companion object {
        const val RANGE_NOT_SATISFIABLE = 416

        fun hashOf(file: File): String {
            val digest = MessageDigest.getInstance("SHA-256")
            val buffer = ByteArray(64 * 1024)
            file.inputStream().use { input ->
                while (true) {
                    val n = input.read(buffer)
                    if (n < 0) break
                    digest.update(buffer, 0, n)
                }
            }
            return digest.digest().joinToString("") { "%02x".format(it) }
        }
    }
}
