import javax.inject.Inject
import org.gradle.api.DefaultTask
import org.gradle.api.file.DirectoryProperty
import org.gradle.api.tasks.InputDirectory
import org.gradle.api.tasks.Internal
import org.gradle.api.tasks.OutputDirectory
import org.gradle.api.tasks.PathSensitive
import org.gradle.api.tasks.PathSensitivity
import org.gradle.api.tasks.TaskAction
import org.gradle.process.ExecOperations

/** Generates the Kotlin bindings from the very library that is packaged; they are tied by nothing else. */
abstract class GenerateBindings @Inject constructor(private val processes: ExecOperations) : DefaultTask() {
    /** The root of the repository. */
    @get:Internal abstract val repository: DirectoryProperty

    /** What [BuildRust] has built. */
    @get:InputDirectory
    @get:PathSensitive(PathSensitivity.RELATIVE)
    abstract val libraries: DirectoryProperty

    @get:OutputDirectory abstract val kotlin: DirectoryProperty

    @TaskAction
    fun generate() {
        // The same for each ABI.
        val library = libraries.get().asFile.walk().filter { it.name == BuildRust.LIBRARY }.sorted().first()
        kotlin.get().asFile.deleteRecursively()
        processes.exec {
            workingDir(repository.get().asFile)
            commandLine("cargo", "run", "--quiet", "--locked", "--profile", "tools", "-p", "calora-bindgen", "--")
            args("generate", library.path, "--language", "kotlin", "--no-format")
            args("--out-dir", kotlin.get().asFile.path)
        }
    }
}
