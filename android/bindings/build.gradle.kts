// The Rust library and what uniffi generates for it. Apps do not see it: `calora` depends on it by `implementation`.
plugins {
    alias(libs.plugins.android.library)
    `maven-publish`
}

android {
    namespace = "dev.calora.ffi"
    compileSdk = libs.versions.compile.sdk.get().toInt()
    ndkVersion = libs.versions.ndk.get()
    defaultConfig {
        minSdk = libs.versions.min.sdk.get().toInt()
        consumerProguardFiles("consumer-rules.pro")
        ndk { abiFilters += BuildRust.TARGETS.keys }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    // Uncompressed and aligned to 16 KB in the APK; the system maps it from there.
    packaging { jniLibs { useLegacyPackaging = false } }
    publishing { singleVariant("release") }
}

val root = layout.projectDirectory.dir("../..")

val buildRust =
    tasks.register<BuildRust>("buildRust") {
        repository = root
        ndk = androidComponents.sdkComponents.ndkDirectory
        ndkVersion = libs.versions.ndk
        minSdk = libs.versions.min.sdk.map(String::toInt)
        // One is enough to try something out: -Pcalora.abi=arm64-v8a.
        abis = providers.gradleProperty("calora.abi").map { setOf(it) }.orElse(BuildRust.TARGETS.keys)
        sources.from(root.file("Cargo.toml"), root.file("Cargo.lock"), root.file("rust-toolchain.toml"))
        sources.from(root.dir("runtime"), root.dir("shaders"), root.dir("bindings"))
    }

val generateBindings =
    tasks.register<GenerateBindings>("generateBindings") {
        repository = root
        libraries = buildRust.flatMap { it.libraries }
    }

androidComponents {
    onVariants { variant ->
        variant.sources.jniLibs?.addGeneratedSourceDirectory(buildRust, BuildRust::libraries)
        variant.sources.kotlin?.addGeneratedSourceDirectory(generateBindings, GenerateBindings::kotlin)
    }
}

dependencies {
    implementation(libs.coroutines.core)
    implementation(variantOf(libs.jna) { artifactType("aar") })
}

publishing {
    publications {
        register<MavenPublication>("release") {
            artifactId = "calora-bindings"
            afterEvaluate { from(components["release"]) }
            pom { describe("calora's native library", "Internal to calora; use dev.calora:calora.") }
        }
    }
}
