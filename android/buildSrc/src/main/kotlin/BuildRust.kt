import javax.inject.Inject
import org.gradle.api.DefaultTask
import org.gradle.api.file.ConfigurableFileCollection
import org.gradle.api.file.DirectoryProperty
import org.gradle.api.provider.Property
import org.gradle.api.provider.SetProperty
import org.gradle.api.tasks.Input
import org.gradle.api.tasks.InputFiles
import org.gradle.api.tasks.Internal
import org.gradle.api.tasks.OutputDirectory
import org.gradle.api.tasks.PathSensitive
import org.gradle.api.tasks.PathSensitivity
import org.gradle.api.tasks.TaskAction
import org.gradle.process.ExecOperations

/** Builds libcalora_ffi.so for Android: cargo, with the NDK's clang as the linker. */
abstract class BuildRust @Inject constructor(private val processes: ExecOperations) : DefaultTask() {
    /** The root of the repository. */
    @get:Internal abstract val repository: DirectoryProperty

    /** The NDK. */
    @get:Internal abstract val ndk: DirectoryProperty

    /** What the library is made of. */
    @get:InputFiles
    @get:PathSensitive(PathSensitivity.RELATIVE)
    abstract val sources: ConfigurableFileCollection

    /** Android's names of the processors. */
    @get:Input abstract val abis: SetProperty<String>

    /** The oldest Android. */
    @get:Input abstract val minSdk: Property<Int>

    /** The NDK's version; another NDK is another library. */
    @get:Input abstract val ndkVersion: Property<String>

    /** One folder for each ABI. */
    @get:OutputDirectory abstract val libraries: DirectoryProperty

    @TaskAction
    fun build() {
        val root = repository.get().asFile
        for (abi in abis.get()) {
            val target = TARGETS[abi] ?: error("calora has no library for $abi; it needs a 64-bit processor")
            val tools = ndk.get().dir("toolchains/llvm/prebuilt").asFile.listFiles()!!.single { it.isDirectory }
            val clang = tools.resolve("bin/$target${minSdk.get()}-clang").path
            val variable = target.replace('-', '_')
            processes.exec {
                workingDir(root)
                environment("CARGO_TARGET_${variable.uppercase()}_LINKER", clang)
                environment("CC_$variable", clang)
                environment("AR_$variable", tools.resolve("bin/llvm-ar").path)
                commandLine("cargo", "rustc", "--locked", "--profile", "phone", "-p", "calora-ffi", "--lib")
                args("--crate-type", "cdylib", "--target", target, "--")
                // Devices with pages of 16 KB load nothing aligned to less; JNA looks the library up by its name.
                args("-Clink-arg=-Wl,-z,max-page-size=16384", "-Clink-arg=-Wl,-soname,$LIBRARY")
                // Half a megabyte less, for API 28 and newer; tests/phone/android.sh measures with the same flags.
                args("-Clink-arg=-Wl,--pack-dyn-relocs=android+relr,--use-android-relr-tags")
            }
            val built = root.resolve("target/$target/phone/$LIBRARY")
            built.copyTo(libraries.get().file("$abi/$LIBRARY").asFile, overwrite = true)
        }
    }

    companion object {
        const val LIBRARY = "libcalora_ffi.so"
        val TARGETS = mapOf("arm64-v8a" to "aarch64-linux-android", "x86_64" to "x86_64-linux-android")
    }
}
