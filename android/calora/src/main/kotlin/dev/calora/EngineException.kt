package dev.calora

/**
 * What can go wrong, a few cases, each with what a program needs to act. The message says it to a developer.
 *
 * A cancelled coroutine is not among them: it ends with [kotlinx.coroutines.CancellationException], as everywhere.
 */
public sealed class EngineException(message: String) : Exception(message) {
    /**
     * A file or folder is not there: download it.
     *
     * @property path the file or folder
     * @property reason what was expected and what to do
     */
    public class FileNotFound(public val path: String, public val reason: String) :
        EngineException("$path is missing: $reason")

    /**
     * A file could not be read.
     *
     * @property path the file
     * @property reason what the system said
     */
    public class FileUnreadable(public val path: String, public val reason: String) :
        EngineException("$path cannot be read: $reason")

    /**
     * A file's content is damaged, truncated, or not what its name says. Downloading it again may help.
     *
     * @property path the file
     * @property reason what is wrong
     */
    public class InvalidFile(public val path: String, public val reason: String) :
        EngineException("$path is damaged or not of the expected format: $reason")

    /**
     * A model or adapter asks for something that this version does not compute.
     *
     * @property path the file
     * @property feature what it asks for
     * @property reason why not, and what is supported
     */
    public class Unsupported(public val path: String, public val feature: String, public val reason: String) :
        EngineException("$path: $feature is not supported: $reason")

    /**
     * The adapter was made for another base model.
     *
     * @property adapter the adapter's name
     * @property expectedBase the base id in the adapter
     * @property actualBase the loaded model's id
     */
    public class AdapterMismatch(
        public val adapter: String,
        public val expectedBase: String,
        public val actualBase: String,
    ) : EngineException("adapter $adapter was made for base $expectedBase, but this model is $actualBase")

    /**
     * The adapter would change nothing in this model.
     *
     * @property adapter the adapter's name
     * @property reason which modules it names and which the model has
     */
    public class AdapterTouchesNothing(public val adapter: String, public val reason: String) :
        EngineException("adapter $adapter touches nothing in this model: $reason")

    /**
     * The adapter is encrypted, and no key or another one was given.
     *
     * @property path the file
     * @property reason what was wrong with the key
     */
    public class AdapterLocked(public val path: String, public val reason: String) :
        EngineException("$path is encrypted: $reason")

    /**
     * The adapter has no signature of a trusted signer, or was changed after it was signed.
     *
     * @property path the file or folder
     * @property reason what is wrong with the signature
     */
    public class AdapterUntrusted(public val path: String, public val reason: String) :
        EngineException("$path is not trusted: $reason")

    /**
     * The adapter fits by its shapes and does nothing, or something else than it was made for.
     *
     * @property adapter the adapter's name
     * @property reason what its probe showed
     */
    public class AdapterUnproven(public val adapter: String, public val reason: String) :
        EngineException("adapter $adapter does not act as it should: $reason")

    /**
     * A file that was open was truncated or written to in place. Open it again, and replace files by renaming.
     *
     * @property path the file
     */
    public class FileChanged(public val path: String) : EngineException("$path changed after it was opened")

    /**
     * An adapter was to be replaced or removed in another state than it is in: somebody else was faster.
     *
     * @property adapter the adapter's name in its library
     * @property expected the version that was expected; null for none
     * @property actual the version that is there; null for none
     */
    public class VersionConflict(public val adapter: String, public val expected: String?, public val actual: String?) :
        EngineException("adapter $adapter is at version $actual, not $expected")

    /**
     * Prompt and conversation do not fit the context: shorten them, [Session.reset], or ask for a larger one.
     *
     * @property contextSize tokens that the session can hold
     * @property tokenCount tokens needed, the conversation so far included
     */
    public class ContextSizeExceeded(public val contextSize: Long, public val tokenCount: Long) :
        EngineException("the context holds $contextSize tokens, $tokenCount are needed")

    /**
     * An option has a value that cannot work.
     *
     * @property option the option's name
     * @property value the value given
     * @property reason what is accepted
     */
    public class InvalidOption(public val option: String, public val value: String, public val reason: String) :
        EngineException("$option = $value: $reason")

    /**
     * No device of the wanted kind can be used.
     *
     * @property wanted `gpu` or `cpu`
     * @property reason why not
     */
    public class DeviceUnavailable(public val wanted: String, public val reason: String) :
        EngineException("no usable $wanted device: $reason")

    /**
     * The system took the GPU away over and over within one request. The engine makes it again by itself: ask again, or
     * load with [EngineConfig.fallbackToCpu].
     *
     * @property reason what the driver said
     */
    public class DeviceLost(public val reason: String) : EngineException("the GPU was lost: $reason")

    /**
     * Memory ran out. Close sessions, lower the context size or the adapter budget, or take a smaller model.
     *
     * @property what what was to be placed
     * @property neededBytes its size
     * @property reason what the device said
     */
    public class OutOfMemory(public val what: String, public val neededBytes: Long, public val reason: String) :
        EngineException("out of memory for $what ($neededBytes bytes): $reason")

    /**
     * The model would take more memory than there is; nothing was loaded. Load with [MemoryPlan.fittingContextSize] or
     * [MemoryPolicy.SHRINK], or take a smaller model.
     *
     * @property plan what it would take, what there is, and what would fit
     */
    public class DoesNotFit(public val plan: MemoryPlan, message: String) : EngineException(message)

    /** The session is answering already. One response at a time; open another session for another. */
    public class Busy : EngineException("the session is answering another request")

    /**
     * The object was closed.
     *
     * @property what `engine`, `session` or `adapter`
     */
    public class Closed(public val what: String) : EngineException("the $what is closed")

    /**
     * A defect of calora or of a driver; please report it with the diagnostics.
     *
     * @property reason what happened
     */
    public class Internal(public val reason: String) : EngineException("internal error: $reason")
}
