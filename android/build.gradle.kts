// Kotlin is built into the Android plugin since 9.0; there is no Kotlin plugin to apply.
plugins {
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.compose) apply false
}

subprojects {
    group = "dev.calora"
}
